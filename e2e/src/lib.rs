//! Runs the real binaries: harness for the tests in `tests/`, and the demo.

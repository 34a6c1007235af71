//! `Discovery.Subscribe`: one session per proxy, and the tracker of who serves what.

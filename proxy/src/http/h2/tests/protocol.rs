//! What peers may and may not do, frame by frame.

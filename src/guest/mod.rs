//! PID 1's duties, one file each.

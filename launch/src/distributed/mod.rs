//! The processes of one run: which of them this one is, and how they find and watch each other.

mod placement;
mod session;
mod store;

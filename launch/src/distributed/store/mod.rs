//! The store on rank 0.

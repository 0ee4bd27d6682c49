//! How the processes of a run reach each other before and beside the collectives: TCP connections to rank 0, which keeps values
//! under keys and passes them on.
//!
//! A connection begins with each side proving to the other that it knows the secret of the run ([`handshake`]); the secret itself is
//! never sent, and until the proof nothing is read but a few records of fixed size, within a time-out. Then both sides send frames
//! ([`frame`]) whenever they like, at least one every two seconds ([`link`]), so that silence means something.
//!
//! What is sent is neither encrypted nor signed: whoever can read or change the traffic between the hosts sees recipe, host names and
//! keys, and can disturb the run. The secret keeps out everybody else.

mod address;
mod frame;
mod handshake;
mod link;
mod message;
mod pace;

pub(crate) use address::{connect, listen};
pub(crate) use frame::Frame;
pub(crate) use handshake::{Key, Refusal, admit};
pub(crate) use link::{Break, Link, Reader};
pub(crate) use message::{Hello, Message, Peer};
pub(crate) use pace::Pace;

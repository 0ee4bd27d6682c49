//! Frames on a connection: two lengths of four bytes, most significant byte first, a head in JSON, a body of bytes.

use std::io::{self, Read};

use super::message::Message;

/// Longest head in bytes. The longest are lists of ten thousands of data files.
const MOST_HEAD: usize = 16 << 20;

/// Longest body in bytes.
const MOST_BODY: usize = 64 << 20;

/// Memory for what has been announced and not yet arrived.
const AT_ONCE: usize = 64 << 10;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// What it says.
    pub(crate) message: Message,
    /// The value that goes with it, if any.
    pub(crate) body: Vec<u8>,
}

impl From<Message> for Frame {
    fn from(message: Message) -> Self {
        Self {
            message,
            body: Vec::new(),
        }
    }
}

impl Frame {
    /// As it goes over the wire.
    ///
    /// # Errors
    /// When head or body is longer than a frame may be.
    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        let head = serde_json::to_vec(&self.message)?;
        let mut bytes = Vec::with_capacity(8 + head.len() + self.body.len());
        bytes.extend(length(head.len(), MOST_HEAD)?);
        bytes.extend(length(self.body.len(), MOST_BODY)?);
        bytes.extend(head);
        bytes.extend(&self.body);
        Ok(bytes)
    }

    /// The next frame.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other side has closed the connection, `InvalidData` when what comes is no frame, else what the reader
    /// says.
    pub(crate) fn read(reader: &mut impl Read) -> io::Result<Self> {
        let mut lengths = [0; 8];
        reader.read_exact(&mut lengths)?;
        let [a, b, c, d, e, f, g, h] = lengths;
        let head = read_bytes(reader, u32::from_be_bytes([a, b, c, d]), MOST_HEAD)?;
        let body = read_bytes(reader, u32::from_be_bytes([e, f, g, h]), MOST_BODY)?;
        Ok(Self {
            message: serde_json::from_slice(&head).map_err(|error| invalid(format!("its head is none: {error}")))?,
            body,
        })
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn length(bytes: usize, most: usize) -> io::Result<[u8; 4]> {
    match u32::try_from(bytes) {
        Ok(length) if bytes <= most => Ok(length.to_be_bytes()),
        _ => Err(invalid(format!(
            "{bytes} bytes are more than the {most} that a message may have"
        ))),
    }
}

fn read_bytes(reader: &mut impl Read, length: u32, most: usize) -> io::Result<Vec<u8>> {
    let length = length as usize;
    if length > most {
        return Err(invalid(format!(
            "it announces {length} bytes, more than the {most} that there may be"
        )));
    }
    let mut bytes = Vec::with_capacity(length.min(AT_ONCE));
    reader.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::message::{Hello, Peer};
    use super::*;

    fn message() -> impl Strategy<Value = Message> {
        let text = "\\PC{0,12}";
        let hello = (text, text, proptest::option::of(text), text, "[a-z\n\"]{0,20}").prop_map(
            |(host, device, device_id, version, recipe)| Hello {
                data: recipe.clone(),
                host,
                device,
                device_id,
                version,
                recipe,
            },
        );
        let peer = (0_usize..2000, text, text).prop_map(|(rank, host, device)| Peer { rank, host, device });
        prop_oneof![
            Just(Message::Beat),
            Just(Message::Leave),
            Just(Message::Bye),
            (any::<usize>(), any::<usize>(), hello).prop_map(|(rank, world_size, hello)| Message::Join {
                rank,
                world_size,
                hello
            }),
            vec(peer, 0..4).prop_map(|peers| Message::Welcome { peers }),
            text.prop_map(|key| Message::Set { key }),
            text.prop_map(|key| Message::Wait { key }),
            text.prop_map(|key| Message::Value { key }),
            (any::<u8>(), text).prop_map(|(exit, message)| Message::Fail { exit, message }),
            (any::<u8>(), text).prop_map(|(exit, message)| Message::End { exit, message }),
        ]
    }

    fn frame() -> impl Strategy<Value = Frame> {
        (message(), vec(any::<u8>(), 0..64)).prop_map(|(message, body)| Frame { message, body })
    }

    proptest! {
        #[test]
        fn frames_come_back_one_after_the_other(frames in vec(frame(), 0..5)) {
            let bytes = frames.iter().map(|frame| frame.encode().unwrap()).collect::<Vec<_>>().concat();
            let mut reader = bytes.as_slice();
            for frame in &frames {
                prop_assert_eq!(&Frame::read(&mut reader).unwrap(), frame);
            }
            prop_assert_eq!(Frame::read(&mut reader).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }

        #[test]
        fn a_frame_cut_anywhere_is_a_closed_connection(frame in frame(), cut in any::<prop::sample::Index>()) {
            let bytes = frame.encode().unwrap();
            let error = Frame::read(&mut &bytes[..cut.index(bytes.len())]).unwrap_err();
            prop_assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..64)) {
            // Lengths that fit, so that the head is looked at.
            let mut framed = vec![0, 0, 0, u8::try_from(bytes.len()).unwrap(), 0, 0, 0, 0];
            framed.extend(&bytes);
            if let Err(error) = Frame::read(&mut framed.as_slice()) {
                prop_assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            }
            // And lengths as they come.
            let _ = Frame::read(&mut bytes.as_slice());
        }
    }

    #[test]
    fn lengths_beyond_the_limits_are_refused_before_any_memory_is_taken() {
        for lengths in [[255, 255, 255, 255, 0, 0, 0, 0], *b"GET / HT"] {
            let error = Frame::read(&mut lengths.as_slice()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let frame = Frame {
            message: Message::Set {
                key: "large".to_owned(),
            },
            body: vec![0; MOST_BODY + 1],
        };
        assert!(
            frame
                .encode()
                .unwrap_err()
                .to_string()
                .contains("67108865 bytes are more than")
        );
    }
}

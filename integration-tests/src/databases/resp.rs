//! As much of Redis' protocol (RESP, version 2) as a client needs that sets keys and reads them again.

use std::io::{self, BufRead, Read, Write};

/// The longest value and the most elements that are believed.
const MAX_LENGTH: usize = 1 << 20;
/// The longest line of a reply: an error message.
const MAX_LINE: u64 = 4096;

/// What the server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK` and the like.
    Simple(String),
    /// A refusal, in words.
    Refused(String),
    /// A number.
    Integer(i64),
    /// A value, or none.
    Value(Option<Vec<u8>>),
    /// Several of these.
    Array(Vec<Reply>),
}

/// Sends a command, as an array of its words.
///
/// # Errors
/// The connection is gone.
pub fn send(to: &mut impl Write, words: &[&str]) -> io::Result<()> {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        text += &format!("${}\r\n{word}\r\n", word.len());
    }
    to.write_all(text.as_bytes())
}

/// Reads one reply.
///
/// # Errors
/// The connection is gone, or this is no reply.
pub fn receive(from: &mut impl BufRead) -> io::Result<Reply> {
    reply(from, true)
}

/// An array has no arrays in it, in what is asked here.
fn reply(from: &mut impl BufRead, may_be_array: bool) -> io::Result<Reply> {
    let mut line = String::new();
    from.take(MAX_LINE).read_line(&mut line)?;
    let Some(text) = line.strip_suffix("\r\n") else {
        return Err(match line.is_empty() {
            true => io::ErrorKind::UnexpectedEof.into(),
            false => invalid(&line),
        });
    };
    let rest = text.get(1..).unwrap_or_default();
    match text.as_bytes().first() {
        Some(b'+') => Ok(Reply::Simple(rest.to_owned())),
        Some(b'-') => Ok(Reply::Refused(rest.to_owned())),
        Some(b':') => rest.parse().map(Reply::Integer).map_err(|_| invalid(text)),
        Some(b'$') if rest == "-1" => Ok(Reply::Value(None)),
        Some(b'$') => value(from, length(rest)?),
        Some(b'*') if may_be_array => (0..length(rest)?)
            .map(|_| reply(from, false))
            .collect::<io::Result<_>>()
            .map(Reply::Array),
        _ => Err(invalid(text)),
    }
}

fn value(from: &mut impl Read, length: usize) -> io::Result<Reply> {
    let mut bytes = vec![0; length + 2];
    from.read_exact(&mut bytes)?;
    if bytes.split_off(length) == b"\r\n" {
        Ok(Reply::Value(Some(bytes)))
    } else {
        Err(invalid("a value without its end"))
    }
}

fn length(text: &str) -> io::Result<usize> {
    let length = text.parse().ok().filter(|&length| length <= MAX_LENGTH);
    length.ok_or_else(|| invalid(text))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("Redis says {what:?}, which is no reply"),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_replies() {
        let mut sent = Vec::new();
        send(&mut sent, &["SET", "a", ""]).unwrap();
        assert_eq!(sent, b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$0\r\n\r\n");
        let mut said: &[u8] = b"+OK\r\n-ERR no\r\n:-3\r\n*3\r\n$2\r\n\r\n\r\n$-1\r\n$0\r\n\r\n";
        let value = |bytes: &[u8]| Reply::Value(Some(bytes.to_vec()));
        for reply in [
            Reply::Simple("OK".into()),
            Reply::Refused("ERR no".into()),
            Reply::Integer(-3),
            Reply::Array(vec![value(b"\r\n"), Reply::Value(None), value(b"")]),
        ] {
            assert_eq!(receive(&mut said).unwrap(), reply);
        }
        assert_eq!(
            receive(&mut said).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for said in [
            "\r\n",
            "OK\r\n",
            "+OK",
            ":x\r\n",
            "$-2\r\n",
            "$99999999999\r\n",
            "$2\r\nabcd",
            "$3\r\nab",
            "*1\r\n*1\r\n:1\r\n",
            "*-1\r\n",
        ] {
            assert!(receive(&mut said.as_bytes()).is_err(), "{said:?}");
        }
    }
}

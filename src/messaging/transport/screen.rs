//! Between the socket and lapin: replaces what lapin's parser would not survive.
//!
//! RabbitMQ passes on whatever a publisher sent. lapin's parser recurses into nested headers until
//! the stack of its thread is used up, which aborts the process, and ends the connection over a
//! text that is not UTF-8. A few bytes of headers can also become many values in memory, and a body
//! can be of any size. So the screen looks at the head of each delivered message, and passes on a
//! harmless one in place of a head that lapin should not see: one header says why, one holds the
//! original properties. A body over the limit is left out. Everything else passes as it came.
//!
//! It also notes which messages are returned, because no queue takes them, before lapin sees the
//! confirm: lapin attaches a return to whichever confirm it resolves next.
//!
//! Pure: bytes in, bytes out. <https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf>, sections
//! 2.3.5 and 4.2.

use std::collections::{HashMap, HashSet};
use std::str;
use std::sync::Arc;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use parking_lot::Mutex;

/// Prefix of the headers that the screen adds.
pub(crate) const MARK: &str = "x-unreadable";
/// Why the head was replaced.
const REASON: &str = MARK;
/// The original property list, flags included, if it is not too long.
const PROPERTIES: &str = "x-unreadable-properties";
/// The size of a body that was left out, in bytes.
const BODY_SIZE: &str = "x-unreadable-body-size";

/// Most levels of tables and arrays in headers; a message that was dead-lettered twenty times has
/// four.
const MAX_DEPTH: u32 = 32;
/// Most values in headers; such a message has 200.
const MAX_VALUES: u32 = 256;
/// Longest property list. A longer one is dropped: what the broker or a dead letter adds must still
/// fit into a frame, or lapin or the broker ends the connection.
const MAX_PROPERTIES: usize = 32 << 10;

/// A limit on bodies that excludes none, in bytes.
pub(crate) const NO_LIMIT: u64 = u64::MAX;

/// What the screen found wrong with a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Its body is here, its properties are not.
    Unreadable(String),
    /// Neither its body, of this many bytes, nor its properties are here.
    TooLarge(u64),
}

/// The mark of a message, if the screen left one.
pub(crate) fn mark(properties: &BasicProperties) -> Option<Mark> {
    let headers = properties.headers().as_ref().map(FieldTable::inner)?;
    if let Some(AMQPValue::LongLongInt(size)) = headers.get(BODY_SIZE) {
        return Some(Mark::TooLarge(u64::try_from(*size).unwrap_or_default()));
    }
    match headers.get(REASON)? {
        AMQPValue::LongString(reason) => Some(Mark::Unreadable(reason.to_string())),
        _ => None,
    }
}

/// The ids of messages that the broker has returned.
#[derive(Clone, Debug, Default)]
pub struct Returned(Arc<Mutex<HashSet<String>>>);

impl Returned {
    /// Returns whether a message was returned, and forgets it. Reliable as soon as its confirm is
    /// known.
    pub fn take(&self, message_id: &impl ToString) -> bool {
        let mut returned = self.0.lock();
        !returned.is_empty() && returned.remove(&message_id.to_string())
    }
}

/// Type of a frame with a method.
const METHOD: u8 = 1;
/// Type of a frame with a message's properties and its body's size.
const HEADER: u8 = 2;
/// Type of a frame with a part of a body.
const BODY: u8 = 3;
/// Bytes of type, channel and size, before the payload.
const FRAME_HEAD: usize = 7;
/// Bytes after the payload.
const FRAME_END: usize = 1;
/// Class, weight and body's size, before the properties and their flags.
const HEAD_FIXED: usize = 12;
/// Tells lapin that the broker is alive.
const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xCE];

#[derive(Default)]
pub(crate) struct Screen {
    /// What has arrived of the current frame, unless it is passed on unseen.
    frame: Vec<u8>,
    /// Bytes left of a frame that is not inspected, and whether they are passed on.
    rest: usize,
    passes: bool,
    /// Channels whose next message has an exchange or a routing key that is not UTF-8.
    garbled: HashSet<u16>,
    /// Bytes of bodies that are left out, by channel.
    left_out: HashMap<u16, u64>,
    /// Channels whose next message is a returned one.
    returning: HashSet<u16>,
    returned: Returned,
}

impl Screen {
    pub(crate) fn new(returned: Returned) -> Self {
        Self {
            returned,
            ..Self::default()
        }
    }

    /// Screens the bytes that have arrived and appends to `out` what is passed on. Leaves out
    /// bodies over `limit`.
    pub(crate) fn pass(&mut self, mut bytes: &[u8], limit: u64, out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            if self.rest > 0 {
                let (now, later) = bytes.split_at(self.rest.min(bytes.len()));
                if self.passes {
                    out.extend_from_slice(now);
                }
                self.rest -= now.len();
                bytes = later;
                continue;
            }
            let wanted = self.wanted();
            let (now, later) = bytes.split_at((wanted - self.frame.len()).min(bytes.len()));
            self.frame.extend_from_slice(now);
            bytes = later;
            if self.frame.len() == wanted {
                self.take(limit, out);
            }
        }
    }

    /// Passes on an incomplete frame when no more bytes come.
    pub(crate) fn end(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.frame);
    }

    /// How many bytes of the current frame must be inspected.
    fn wanted(&self) -> usize {
        match self.frame.first_chunk::<FRAME_HEAD>() {
            Some(&[HEADER, _, _, size @ ..]) if is_too_long(size) => FRAME_HEAD + HEAD_FIXED,
            Some(&[METHOD | HEADER, _, _, size @ ..]) => {
                FRAME_HEAD + u32::from_be_bytes(size) as usize + FRAME_END
            }
            _ => FRAME_HEAD,
        }
    }

    /// Looks at the head of a frame, or at a whole one.
    fn take(&mut self, limit: u64, out: &mut Vec<u8>) {
        let Some(&[kind, high, low, size @ ..]) = self.frame.first_chunk::<FRAME_HEAD>() else {
            return;
        };
        let channel = u16::from_be_bytes([high, low]);
        let size = u32::from_be_bytes(size) as usize;
        match kind {
            METHOD | HEADER if self.frame.len() == FRAME_HEAD => return,
            METHOD => {
                if self.frame[FRAME_HEAD..].starts_with(&RETURN) {
                    self.returning.insert(channel);
                }
                if let Some(payload) = self.frame.get_mut(FRAME_HEAD..FRAME_HEAD + size)
                    && make_readable(payload)
                {
                    self.garbled.insert(channel);
                }
                out.extend_from_slice(&self.frame);
            }
            HEADER if self.frame.len() < FRAME_HEAD + size => {
                self.pass_head(channel, limit, true, out);
                self.rest = size - HEAD_FIXED + FRAME_END;
                self.passes = false;
            }
            HEADER => self.pass_head(channel, limit, false, out),
            _ => {
                let left_out = self
                    .left_out
                    .get_mut(&channel)
                    .filter(|left| kind == BODY && **left > 0);
                self.passes = left_out.is_none();
                if let Some(left) = left_out {
                    *left = left.saturating_sub(size as u64);
                    // The broker sends no heartbeats while it sends a body, and lapin sees nothing
                    // of this one.
                    out.extend_from_slice(&HEARTBEAT);
                } else {
                    out.extend_from_slice(&self.frame);
                }
                self.rest = size + FRAME_END;
            }
        }
        self.frame.clear();
    }

    /// Passes on a message's head, or a replacement. If its properties are too long, the frame
    /// holds only what precedes them.
    fn pass_head(&mut self, channel: u16, limit: u64, are_too_long: bool, out: &mut Vec<u8>) {
        let end = if are_too_long { 0 } else { FRAME_END };
        let payload = &self.frame[FRAME_HEAD..self.frame.len() - end];
        let garbled = self.garbled.remove(&channel);
        let comes_back = self.returning.remove(&channel);
        let Some((fixed, properties)) = payload.split_first_chunk::<HEAD_FIXED>() else {
            return out.extend_from_slice(&self.frame);
        };
        let read = Reader::new(properties).properties();
        if let Some(message_id) = read
            && comes_back
        {
            self.returned.0.lock().insert(message_id.to_owned());
        }
        let [class_and_weight @ .., _, _, _, _, _, _, _, _] = fixed;
        let body_size = u64::from_be_bytes(*fixed.last_chunk().unwrap_or(&[0; 8]));
        let is_too_large = body_size > limit;
        let reason = if is_too_large {
            "it is too large"
        } else if are_too_long {
            "its properties are too long"
        } else if read.is_none() {
            "its properties are malformed, nested too deeply, or too many"
        } else if garbled {
            "its exchange or routing key is not UTF-8"
        } else {
            return out.extend_from_slice(&self.frame);
        };
        let mut headers = Vec::new();
        put_text(&mut headers, REASON, b'S', reason.as_bytes());
        if is_too_large {
            self.left_out.insert(channel, body_size);
            put_name(&mut headers, BODY_SIZE, b'l');
            headers.extend_from_slice(&body_size.to_be_bytes());
        } else if !are_too_long {
            put_text(&mut headers, PROPERTIES, b'x', properties);
        }
        let mut replaced = class_and_weight.to_vec();
        replaced.extend_from_slice(&if is_too_large { 0 } else { body_size }.to_be_bytes());
        replaced.extend_from_slice(&HEADERS_FLAG.to_be_bytes());
        put_long(&mut replaced, &headers);
        out.push(HEADER);
        out.extend_from_slice(&channel.to_be_bytes());
        put_long(out, &replaced);
        out.push(0xCE);
    }
}

/// The class `basic` and its method `return`.
const RETURN: [u8; 4] = [0, 60, 0, 50];

/// Whether a head of this size has properties that are too long.
fn is_too_long(size: [u8; 4]) -> bool {
    u32::from_be_bytes(size) as usize > HEAD_FIXED + MAX_PROPERTIES
}

/// Appends the length, in four bytes, and the bytes.
fn put_long(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend_from_slice(bytes);
}

fn put_name(to: &mut Vec<u8>, name: &str, kind: u8) {
    to.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    to.extend_from_slice(name.as_bytes());
    to.push(kind);
}

fn put_text(to: &mut Vec<u8>, name: &str, kind: u8, value: &[u8]) {
    put_name(to, name, kind);
    put_long(to, value);
}

/// Replaces each text that is not UTF-8, in a method that precedes a message, with question marks.
/// Returns whether there was one.
fn make_readable(method: &mut [u8]) -> bool {
    // Class 60 is basic. Before the exchange and routing key, deliver has the consumer tag,
    // delivery tag and redelivered; get-ok has the delivery tag and redelivered; return has the
    // reply code and text.
    let (texts_before, fixed): (usize, usize) = match method {
        [0, 60, 0, 60, ..] => (1, 9),
        [0, 60, 0, 71, ..] => (0, 9),
        [0, 60, 0, 50, ..] => (0, 2),
        _ => return false,
    };
    let is_return = fixed == 2;
    let mut replaced = false;
    let mut place = 4;
    for _ in 0..texts_before {
        place += 1 + usize::from(method.get(place).copied().unwrap_or_default());
    }
    place += fixed;
    for _ in 0..if is_return { 3 } else { 2 } {
        let Some(length) = method.get(place).copied().map(usize::from) else {
            return replaced;
        };
        let Some(text) = method.get_mut(place + 1..place + 1 + length) else {
            return replaced;
        };
        if str::from_utf8(text).is_err() {
            text.fill(b'?');
            replaced = true;
        }
        place += 1 + length;
    }
    replaced
}

/// The flag of the property `headers`.
const HEADERS_FLAG: u16 = 1 << 13;

/// The types of the properties in the order of their flags, from the highest: s a text, t a table,
/// o an octet, l eight octets.
const PROPERTIES_IN_ORDER: &[u8; 14] = b"sstoosssslssss";
/// Which of them is the message's id.
const MESSAGE_ID: usize = 8;

/// Reads values as lapin does, without building them. `None`: lapin would fail, or should not try.
struct Reader<'a> {
    bytes: &'a [u8],
    values_left: u32,
}

impl<'a> Reader<'a> {
    const fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            values_left: MAX_VALUES,
        }
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.bytes.split_at_checked(length)?;
        self.bytes = left;
        Some(taken)
    }

    fn octet(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.octet()?;
        str::from_utf8(self.take(length.into())?).ok()
    }

    fn long(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_be_bytes(*self.take(4)?.first_chunk()?);
        self.take(usize::try_from(length).ok()?)
    }

    /// Reads a property list with its flags, and nothing after it. Returns the message id, empty if
    /// there is none.
    fn properties(mut self) -> Option<&'a str> {
        let flags = u16::from_be_bytes(*self.take(2)?.first_chunk()?);
        if flags & 0b11 != 0 {
            return None;
        }
        let mut message_id = "";
        for (place, kind) in PROPERTIES_IN_ORDER.iter().enumerate() {
            if flags & (1 << (15 - place)) == 0 {
                continue;
            }
            match kind {
                b's' if place == MESSAGE_ID => message_id = self.text()?,
                b's' => _ = self.text()?,
                b't' => self.nested(true, 0)?,
                b'o' => _ = self.octet()?,
                _ => _ = self.take(8)?,
            }
        }
        self.bytes.is_empty().then_some(message_id)
    }

    /// A table or an array, `depth` levels down.
    fn nested(&mut self, is_table: bool, depth: u32) -> Option<()> {
        if depth >= MAX_DEPTH {
            return None;
        }
        let content = self.long()?;
        let outside = std::mem::replace(&mut self.bytes, content);
        while !self.bytes.is_empty() {
            if is_table {
                self.text()?;
            }
            self.value(depth)?;
        }
        self.bytes = outside;
        Some(())
    }

    /// <https://www.rabbitmq.com/amqp-0-9-1-errata#section_3>
    fn value(&mut self, depth: u32) -> Option<()> {
        self.values_left = self.values_left.checked_sub(1)?;
        match self.octet()? {
            b'V' => {}
            b't' | b'b' | b'B' => _ = self.take(1)?,
            b's' | b'U' | b'u' => _ = self.take(2)?,
            b'I' | b'i' | b'f' => _ = self.take(4)?,
            b'D' => _ = self.take(5)?,
            b'L' | b'l' | b'd' | b'T' => _ = self.take(8)?,
            b'S' | b'x' => _ = self.long()?,
            b'A' => self.nested(false, depth + 1)?,
            b'F' => self.nested(true, depth + 1)?,
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests;

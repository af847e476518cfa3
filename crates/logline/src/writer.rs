//! The buffer between loggers and the thread that writes. Logging a line is a copy into a reused
//! buffer: no system call, no allocation, and no wake-up while the thread is busy. The thread
//! writes everything that waits in one call.
//!
//! The buffer is bounded. If the reader stalls or the disk is full, the buffer fills; further lines
//! are dropped and counted, and requests continue. Buffered lines are kept until they are written.
//! Only a panic, which may end the process, waits briefly for the reader.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::{mem, thread};

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

use super::invisible::escaped;

/// Most bytes that may wait; as many again may be on their way to the reader. This many are a third
/// of a second of lines at full load.
const CAPACITY: usize = 8 << 20;
/// A buffer that grew beyond this while the reader stalled is shrunk to it.
const LARGEST_KEPT: usize = 1 << 20;
/// Pause after each write, so that lines gather; delays a line by at most this much.
const GATHER: Duration = Duration::from_millis(2);
/// Pause before another try if standard output is full and non-blocking.
const RETRY: Duration = Duration::from_millis(5);
/// Pause before another try if writing to standard output fails.
const RETRY_FAILED: Duration = Duration::from_millis(100);

/// Buffers whole lines for the writing thread; cheap to clone.
#[derive(Clone)]
pub struct LogWriter(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// The thread waits for lines, or for the end of its pause.
    work: Condvar,
    /// A flush waits for everything to be written.
    written: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    /// The thread sleeps until it is woken.
    asleep: bool,
    /// Total bytes put in, and total bytes written.
    taken: u64,
    written: u64,
    /// A flush waits, so the thread does not pause.
    flushing: bool,
}

impl LogWriter {
    /// Starts the thread, which lives as long as the process.
    pub fn to(output: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let theirs = shared.clone();
        thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || theirs.write_until_closed(output))?;
        Ok(Self(shared))
    }

    /// How many lines were lost so far, because the buffer was full.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Relaxed)
    }

    /// Returns where the last buffered line ends, in bytes since the start.
    pub fn end(&self) -> u64 {
        self.0.waiting.lock().taken
    }

    /// Returns how many bytes have been written since the start.
    pub fn written(&self) -> u64 {
        self.0.waiting.lock().written
    }

    /// Whether a line that must not be lost should wait: the output is stalled.
    pub fn is_half_full(&self) -> bool {
        self.0.waiting.lock().lines.len() > CAPACITY / 2
    }

    /// Waits until all lines logged so far are written, for `limit` at most.
    pub fn flush(&self, limit: Duration) {
        let mut waiting = self.0.waiting.lock();
        waiting.flushing = true;
        self.0.work.notify_one();
        let wanted = waiting.taken;
        self.0
            .written
            .wait_while_for(&mut waiting, |waiting| waiting.written < wanted, limit);
        waiting.flushing = false;
    }
}

/// Each call of `write` is one line.
impl Write for &LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let shown = escaped(line);
        let mut waiting = self.0.waiting.lock();
        if waiting.lines.len() + shown.len() > CAPACITY {
            self.0.dropped.fetch_add(1, Relaxed);
            return Ok(line.len());
        }
        waiting.lines.extend_from_slice(&shown);
        waiting.taken += shown.len() as u64;
        if mem::take(&mut waiting.asleep) {
            drop(waiting);
            self.0.work.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Shared {
    fn write_until_closed(&self, mut output: impl Write) {
        let mut lines = Vec::new();
        loop {
            self.exchange(&mut lines);
            write_all(&mut output, &lines);
        }
    }

    /// Returns the buffer of written lines and, after a pause for lines to gather, takes the next.
    fn exchange(&self, lines: &mut Vec<u8>) {
        let mut waiting = self.waiting.lock();
        waiting.written += lines.len() as u64;
        lines.clear();
        lines.shrink_to(LARGEST_KEPT);
        self.written.notify_all();
        self.work
            .wait_while_for(&mut waiting, |waiting| !waiting.flushing, GATHER);
        while waiting.lines.is_empty() {
            waiting.asleep = true;
            self.work.wait(&mut waiting);
        }
        waiting.asleep = false;
        mem::swap(&mut waiting.lines, lines);
    }
}

/// Retries until everything is written: the disk may have space again, or a pipe a new reader.
fn write_all(output: &mut impl Write, mut lines: &[u8]) {
    while !lines.is_empty() {
        match output.write(lines) {
            Ok(written @ 1..) => lines = &lines[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY),
            Ok(0) | Err(_) => thread::sleep(RETRY_FAILED),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, ErrorKind, Write};
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::{CAPACITY, LogWriter};

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Keeps what is written, call by call.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Reports when a write begins, and ends it with the result that the test sends.
    struct Gated {
        begun: SyncSender<usize>,
        end: Receiver<io::Result<usize>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // The test may be over.
            _ = self.begun.send(bytes.len());
            self.end.recv().unwrap_or(Ok(bytes.len()))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (LogWriter, Receiver<usize>, SyncSender<io::Result<usize>>) {
        let (begun, begins) = sync_channel(0);
        let (ends, end) = sync_channel(0);
        (LogWriter::to(Gated { begun, end }).unwrap(), begins, ends)
    }

    #[test]
    fn lines_of_many_threads_stay_whole_and_in_order_per_thread() {
        let kept = Kept::default();
        let writer = LogWriter::to(kept.clone()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let mut writer = &writer;
                let mut line = move |n| {
                    writer
                        .write_all(format!("{thread} {n}\n").as_bytes())
                        .unwrap();
                };
                scope.spawn(move || (0..1000).for_each(&mut line));
            }
        });
        writer.flush(PATIENCE);
        let text = String::from_utf8(kept.0.lock().unwrap().concat()).unwrap();
        for thread in 0..4 {
            let prefix = format!("{thread} ");
            let numbers: Vec<usize> = text
                .lines()
                .filter_map(|line| line.strip_prefix(&prefix)?.parse().ok())
                .collect();
            assert_eq!(numbers, (0..1000).collect::<Vec<_>>(), "thread {thread}");
        }
        assert_eq!(text.lines().count(), 4000);
    }

    #[test]
    fn all_waiting_lines_are_written_in_one_call() {
        let (writer, begins, ends) = gated();
        (&writer).write_all(b"first\n").unwrap();
        assert_eq!(begins.recv().unwrap(), 6);
        for _ in 0..100 {
            (&writer).write_all(b"another\n").unwrap();
        }
        ends.send(Ok(6)).unwrap();
        assert_eq!(begins.recv().unwrap(), 800);
    }

    #[test]
    fn lines_beyond_the_buffer_limit_are_dropped_and_counted() {
        let (writer, begins, ends) = gated();
        (&writer).write_all(b"taken\n").unwrap();
        begins.recv().unwrap();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let fitting = CAPACITY / line.len();
        for _ in 0..fitting + 5 {
            (&writer).write_all(&line).unwrap();
        }
        assert_eq!(writer.dropped(), 5);
        ends.send(Ok(6)).unwrap();
        assert_eq!(begins.recv().unwrap(), CAPACITY);
        (&writer).write_all(&line).unwrap();
        assert_eq!(writer.dropped(), 5);
    }

    #[test]
    fn an_output_that_takes_only_a_part_gets_the_rest_later() {
        let (writer, begins, ends) = gated();
        (&writer).write_all(b"123456789\n").unwrap();
        assert_eq!(begins.recv().unwrap(), 10);
        ends.send(Ok(4)).unwrap();
        assert_eq!(begins.recv().unwrap(), 6);
        ends.send(Err(ErrorKind::WouldBlock.into())).unwrap();
        assert_eq!(begins.recv().unwrap(), 6);
        ends.send(Err(ErrorKind::Interrupted.into())).unwrap();
        assert_eq!(begins.recv().unwrap(), 6);
        ends.send(Ok(2)).unwrap();
        // So do a full disk and a reader who is gone.
        for failure in [ErrorKind::StorageFull, ErrorKind::BrokenPipe] {
            assert_eq!(begins.recv().unwrap(), 4);
            ends.send(Err(failure.into())).unwrap();
        }
        assert_eq!(begins.recv().unwrap(), 4);
        assert_eq!((writer.end(), writer.written()), (10, 0));
        ends.send(Ok(4)).unwrap();
        writer.flush(PATIENCE);
        assert_eq!((writer.written(), writer.dropped()), (10, 0));
    }

    #[test]
    fn a_flush_blocked_by_the_reader_ends_at_its_time_limit() {
        let (writer, begins, _ends) = gated();
        (&writer).write_all(b"stuck\n").unwrap();
        begins.recv().unwrap();
        writer.flush(Duration::from_millis(1));
    }
}

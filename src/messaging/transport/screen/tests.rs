use lapin::types::{AMQPValue, FieldTable};
use proptest::prelude::*;

use super::*;

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind, 0, 1];
    put_long(&mut frame, payload);
    frame.push(0xCE);
    frame
}

fn text(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    let mut long = Vec::new();
    put_long(&mut long, bytes);
    long
}

fn deliver(routing_key: &[u8]) -> Vec<u8> {
    let method = [
        &[0, 60, 0, 60][..],
        &text(b"tag"),
        &[0; 9],
        &text(b"user_events"),
        &text(routing_key),
    ]
    .concat();
    frame(METHOD, &method)
}

fn head(body_size: u64, properties: &[u8]) -> Vec<u8> {
    frame(
        HEADER,
        &[&[0, 60, 0, 0][..], &body_size.to_be_bytes(), properties].concat(),
    )
}

fn with_headers(table: &[u8]) -> Vec<u8> {
    [&HEADERS_FLAG.to_be_bytes()[..], &long(table)].concat()
}

fn screened(bytes: &[u8], limit: u64) -> Vec<u8> {
    let mut screen = Screen::default();
    let mut out = Vec::new();
    screen.pass(bytes, limit, &mut out);
    out
}

/// The headers that lapin reads in the replaced head in `bytes`.
fn headers(bytes: &[u8]) -> FieldTable {
    let place = bytes
        .windows(MARK.len())
        .position(|window| window == MARK.as_bytes())
        .expect("a mark");
    let table = &bytes[place - 5..];
    lapin::types::parsing::parse_field_table(table).unwrap().1
}

fn nested(levels: usize, kind: u8) -> Vec<u8> {
    let mut value = vec![b'V'];
    for _ in 0..levels {
        value = match kind {
            b'F' => [b"F".to_vec(), long(&[text(b""), value].concat())].concat(),
            _ => [b"A".to_vec(), long(&value)].concat(),
        };
    }
    [text(b"deep"), value].concat()
}

#[test]
fn a_returned_message_is_known_by_its_id_in_any_byte_split() {
    /// The flags of the content type and of the message's id.
    const FLAGS: u16 = 1 << 15 | 1 << 7;
    let came_back = |id: &[u8]| {
        let method = [
            &[0, 60, 0, 50, 1, 56][..],
            &text(b"NO_ROUTE"),
            &text(b"user_events"),
            &text(b"user.created"),
        ];
        let properties = [
            &FLAGS.to_be_bytes()[..],
            &text(b"application/json"),
            &text(id),
        ]
        .concat();
        [
            frame(METHOD, &method.concat()),
            head(2, &properties),
            frame(BODY, b"{}"),
        ]
        .concat()
    };
    let delivered = [
        deliver(b"user.created"),
        head(
            2,
            &[&FLAGS.to_be_bytes()[..], &text(b""), &text(b"c")].concat(),
        ),
    ];
    let bytes = [came_back(b"a"), came_back(b"b"), delivered.concat()].concat();
    for step in [1, 7, bytes.len()] {
        let returned = Returned::default();
        let mut out = Vec::new();
        let mut screen = Screen::new(returned.clone());
        bytes
            .chunks(step)
            .for_each(|chunk| screen.pass(chunk, NO_LIMIT, &mut out));
        assert_eq!(out, bytes);
        assert!(
            returned.take(&"a")
                && returned.take(&"b")
                && !returned.take(&"a")
                && !returned.take(&"c")
        );
    }
}

#[test]
fn a_message_that_lapin_can_read_passes_unchanged() {
    let all_types = [
        (b't', vec![1]),
        (b'b', vec![1]),
        (b'B', vec![1]),
        (b's', vec![0; 2]),
        (b'U', vec![0; 2]),
        (b'u', vec![0; 2]),
        (b'I', vec![0; 4]),
        (b'i', vec![0; 4]),
        (b'f', vec![0; 4]),
        (b'D', vec![0; 5]),
        (b'L', vec![0; 8]),
        (b'l', vec![0; 8]),
        (b'd', vec![0; 8]),
        (b'T', vec![0; 8]),
        (b'V', vec![]),
        (b'S', long(b"\xff")),
        (b'x', long(b"\xff")),
        (b'F', long(b"")),
        (b'A', long(b"V")),
    ];
    let mut table = Vec::new();
    for (kind, value) in all_types {
        table.extend([text("ключ".as_bytes()), vec![kind], value].concat());
    }
    let every_property = [
        &0b1111_1111_1111_1100_u16.to_be_bytes()[..],
        &text(b"a"),
        &text(b"b"),
        &long(&table),
        &[2, 0],
        &text(b"c"),
        &text(b"d"),
        &text(b"e"),
        &text(b"f"),
        &[0; 8],
        &text(b"g"),
        &text(b"h"),
        &text(b"i"),
        &text(b"j"),
    ]
    .concat();
    let none = 0_u16.to_be_bytes();
    for properties in [
        &every_property[..],
        &none,
        &with_headers(&nested(30, b'F')),
        &with_headers(&nested(30, b'A')),
    ] {
        let stream = [
            deliver(b"user.created"),
            head(3, properties),
            frame(BODY, b"abc"),
            frame(8, b""),
        ]
        .concat();
        assert_eq!(screened(&stream, NO_LIMIT), stream);
    }
}

#[test]
fn properties_that_break_lapin_are_replaced_and_kept_as_bytes() {
    let wide = [text(b"wide"), b"A".to_vec(), long(&[b'V'; 2_000])].concat();
    let bad_name = [text(b"\xff"), b"V".to_vec()].concat();
    let bad_type = [text(b"a"), b"Z".to_vec()].concat();
    let cut_off = [text(b"a"), b"S\0\0\0\x09abc".to_vec()].concat();
    let tables = [
        nested(40, b'F'),
        nested(3_000, b'F'),
        nested(5_000, b'A'),
        wide,
        bad_name,
        bad_type,
        cut_off,
    ];
    let bad_id = [&(1_u16 << 7).to_be_bytes()[..], &text(b"\xff")].concat();
    let left_over = [0, 0, 1].to_vec();
    for properties in tables
        .iter()
        .map(|table| with_headers(table))
        .chain([bad_id, left_over])
    {
        let stream = [
            deliver(b"user.created"),
            head(3, &properties),
            frame(BODY, b"abc"),
        ]
        .concat();
        let out = screened(&stream, NO_LIMIT);
        assert!(out.starts_with(&deliver(b"user.created")) && out.ends_with(&frame(BODY, b"abc")));
        assert_eq!(
            headers(&out).inner()[PROPERTIES],
            AMQPValue::ByteArray(properties.into())
        );
    }
}

#[test]
fn the_deepest_header_of_a_frame_is_replaced_but_not_kept() {
    let out = screened(&head(0, &with_headers(&nested(18_700, b'F'))), NO_LIMIT);
    assert!(out.len() < 200, "{}", out.len());
    assert!(!headers(&out).contains_key(PROPERTIES));
}

#[test]
fn a_routing_key_that_is_not_utf_8_marks_only_its_own_message() {
    let stream = [
        deliver(b"user.\xff"),
        head(0, &[0, 0]),
        deliver(b"user.created"),
        head(0, &[0, 0]),
    ]
    .concat();
    let out = screened(&stream, NO_LIMIT);
    let rest = [deliver(b"user.created"), head(0, &[0, 0])].concat();
    assert!(out.starts_with(&deliver(b"??????")) && out.ends_with(&rest));
    assert_eq!(
        headers(&out).inner()[PROPERTIES],
        AMQPValue::ByteArray(vec![0, 0].into())
    );
}

#[test]
fn a_message_over_the_limit_is_passed_on_without_its_body() {
    let body = [frame(BODY, &[1; 700]), frame(BODY, &[2; 300])].concat();
    let next = [
        deliver(b"user.created"),
        head(1, &[0, 0]),
        frame(BODY, b"x"),
    ]
    .concat();
    let out = screened(&[head(1_000, &[0, 0]), body, next.clone()].concat(), 999);
    assert!(out.ends_with(&next) && out.len() < 270, "{}", out.len());
    assert_eq!(
        out.windows(8).filter(|window| *window == HEARTBEAT).count(),
        2
    );
    assert_eq!(
        headers(&out).inner()[BODY_SIZE],
        AMQPValue::LongLongInt(1_000)
    );
}

#[test]
fn empty_and_truncated_frames_pass_unchanged() {
    let stream = [
        frame(METHOD, b""),
        frame(HEADER, b""),
        frame(METHOD, &[0, 60, 0, 60]),
        frame(HEADER, &[0; 11]),
    ]
    .concat();
    let stream = [stream, frame(BODY, b""), deliver(b"user.created")].concat();
    assert_eq!(screened(&stream, NO_LIMIT), stream);
}

#[test]
fn bytes_that_are_not_a_frame_pass_at_the_end() {
    let mut screen = Screen::default();
    let mut out = Vec::new();
    screen.pass(b"AMQP\0\0\x09\x01", NO_LIMIT, &mut out);
    screen.end(&mut out);
    assert_eq!(out, b"AMQP\0\0\x09\x01");
}

proptest! {
    #[test]
    fn bytes_may_arrive_in_pieces_of_any_size(pieces in prop::collection::vec(1..64_usize, 1..40), limit in 0..2_000_u64) {
        let stream = [
            deliver(b"user.\xff"), head(3, &with_headers(&nested(40, b'A'))), frame(BODY, b"abc"),
            deliver(b"user.created"), head(1_000, &[0, 0]), frame(BODY, &[7; 1_000]), frame(8, b""),
        ]
        .concat();
        let mut screen = Screen::default();
        let mut out = Vec::new();
        let mut left = &stream[..];
        for piece in pieces.iter().cycle() {
            let (now, later) = left.split_at(left.len().min(*piece));
            screen.pass(now, limit, &mut out);
            left = later;
            if left.is_empty() {
                break;
            }
        }
        prop_assert_eq!(out, screened(&stream, limit));
    }

    #[test]
    fn no_input_makes_the_screen_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 1..4_u8) {
        screened(&bytes, 100);
        screened(&frame(kind, &bytes), 100);
        screened(&head(0, &bytes), 100);
        screened(&frame(METHOD, &[&[0, 60, 0, 60][..], &bytes].concat()), 100);
    }
}

//! Streams, piece by piece.

use futures_util::{FutureExt as _, StreamExt as _};

use super::*;

fn name(name: &str) -> NodeName {
    NodeName::parse(name).unwrap()
}

fn next(reader: &mut Reader) -> Option<Option<Result<Bytes, LogError>>> {
    reader.next().now_or_never()
}

#[test]
fn pieces_come_in_order_once_and_credit_follows_reading() {
    let mut streams = Streams::new(u32::MAX - 1);
    let node = name("rover-7");
    let (sid, mut reader) = streams.open(&node).unwrap();
    assert_eq!(sid, u32::MAX);
    assert_eq!(streams.open(&node).unwrap().0, 0, "ids wrap");
    assert_eq!(next(&mut reader), None);
    let piece = vec![7; limits::CREDIT as usize];
    assert_eq!(streams.data(&node, sid, 0, &piece), (None, None));
    assert_eq!(streams.data(&node, sid, 0, &piece), (None, None), "twice");
    assert!(
        streams.service().iter().all(|it| it.1 != sid),
        "nothing was read yet"
    );
    assert_eq!(next(&mut reader), Some(Some(Ok(piece.clone().into()))));
    let credit = Down::StreamCredit {
        sid,
        bytes: limits::CREDIT,
    };
    assert_eq!(streams.service(), [(node.clone(), sid, credit)]);
    assert_eq!(streams.service(), []);
    assert_eq!(streams.end(&node, sid, StreamEnd::Complete), None);
    assert_eq!(next(&mut reader), Some(None));
    // What comes after the end is for nobody.
    assert_eq!(
        streams.data(&node, sid, 0, &piece),
        (None, Some(Down::StreamClose { sid }))
    );
}

#[test]
fn what_breaks_a_stream_is_said_in_it() {
    let whole = vec![1; STREAM_WINDOW as usize];
    let check = |offset, bytes: &[u8], words: &str| {
        let mut streams = Streams::new(0);
        let node = name("rover-7");
        let (sid, mut reader) = streams.open(&node).unwrap();
        assert_eq!(
            streams.data(&name("stranger"), sid, 0, b"lie"),
            (Some(Wrong::Stream), None)
        );
        assert_eq!(
            streams.end(&name("stranger"), sid, StreamEnd::Complete),
            Some(Wrong::Stream)
        );
        assert_eq!(streams.data(&node, sid, 0, b"good"), (None, None));
        let closed = (Some(Wrong::Offset), Some(Down::StreamClose { sid }));
        assert_eq!(streams.data(&node, sid, offset, bytes), closed);
        assert_eq!(next(&mut reader), Some(Some(Ok(Bytes::from_static(b"good")))));
        let Some(Some(Ok(told))) = next(&mut reader) else {
            panic!("nothing was said")
        };
        assert!(
            String::from_utf8(told.to_vec()).unwrap().contains(words),
            "{told:?}"
        );
        assert_eq!(
            next(&mut reader),
            None,
            "the words are written before the connection is cut"
        );
        assert!(matches!(
            next(&mut reader),
            Some(Some(Err(LogError::Failed { .. })))
        ));
        assert_eq!(next(&mut reader), Some(None));
    };
    check(9, b"x", "5 bytes of the log were lost");
    check(2, b"overlap", "lost");
    check(4, &whole, "more than it was allowed");
    check(u64::MAX, b"x", "lost");
}

#[test]
fn streams_are_bounded_and_end_with_either_side() {
    let mut streams = Streams::new(0);
    let (node, other) = (name("rover-7"), name("rover-8"));
    let mut readers: Vec<Reader> = (0..STREAMS_PER_NODE)
        .map(|_| streams.open(&node).unwrap().1)
        .collect();
    assert!(matches!(streams.open(&node), Err(LogError::TooMany { .. })));
    let (sid, reader) = streams.open(&other).unwrap();
    drop(reader);
    assert_eq!(streams.service(), [(other, sid, Down::StreamClose { sid })]);
    streams.lost(&node);
    let first = readers.remove(0).ready().now_or_never();
    assert!(matches!(first, Some(Some(Err(LogError::Failed { .. })))));
    assert!(streams.open(&node).is_ok());
}

//! Tables for streams.

//! Tables for status.

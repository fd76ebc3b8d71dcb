//! Tables for compile.

//! Tables for placement.

//! Tables for nodes.

//! Tables for node.

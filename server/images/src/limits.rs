//! Every bound of an import and of the registry face, each with why it is that number.

/// Largest manifest, index, configuration or archive directory, in bytes: the distribution specification's 4 MiB.
pub const MAX_JSON_BYTES: u64 = 4 << 20;
/// Largest import, in bytes, before and after decompression: some times the largest CUDA images.
pub const MAX_IMPORT_BYTES: u64 = 64 << 30;
/// Most files in an archive: `docker save` writes three a layer, and an archive may hold many images.
pub const MAX_ENTRIES: usize = 20_000;
/// Most layers of one image, as on the nodes.
pub const MAX_LAYERS: usize = 128;
/// Most images in one archive or index.
pub const MAX_IMAGES: usize = 1024;
/// Deepest nesting of indexes; `docker buildx` writes two.
pub const MAX_INDEX_DEPTH: usize = 4;
/// Most links from one archive entry to the next: `docker save` once wrote one for a repeated layer.
pub const MAX_LINKS: usize = 8;
/// Largest PAX or long-name record in an archive.
pub const MAX_EXTENSION_BYTES: u64 = 64 << 10;

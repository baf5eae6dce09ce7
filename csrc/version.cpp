// Owns: the library's version as a symbol. A program that uses include/focal_ext/torch.h refers to it, so that a linker which drops
// libraries nobody refers to keeps the one whose ops register themselves.
// Must not know: anything else.
extern "C" __attribute__((visibility("default"))) const char* focal_ext_version() { return FOCAL_EXT_VERSION; }

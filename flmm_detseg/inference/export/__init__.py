"""Results in the formats of other tools, one file a format; see docs/exports.md."""

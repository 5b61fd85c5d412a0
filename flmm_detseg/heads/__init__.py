"""See docs/architecture.md, section Rooms."""

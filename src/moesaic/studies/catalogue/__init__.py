"""Studies that come with moesaic: one file, one function `make(*, smoke) -> Study`."""

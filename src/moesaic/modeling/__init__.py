"""Models as running things: where their FFNs are, and how sparse layers are put in their place."""

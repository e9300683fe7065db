"""People: what is known of labelers' work. So far their agreement."""

"""Files and rows to records: any accepted layout, read whole or refused by name."""

"""What a labeling workspace keeps: its tables, and every act and question that reads or writes them."""

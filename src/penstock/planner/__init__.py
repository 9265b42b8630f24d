"""What was asked for -> what will happen, with a reason per choice. Imports no backend."""

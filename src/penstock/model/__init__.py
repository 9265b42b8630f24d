"""What is computed, as data: config.json -> ModelSpec -> Program, and passes over programs."""

"""Who runs this step with how many tokens, and why them. Plain integers; policies are a seam."""

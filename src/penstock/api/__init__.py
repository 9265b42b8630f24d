"""HTTP in, JSON and server-sent events out: OpenAI's and Anthropic's shapes. Text only; sees no tensor."""

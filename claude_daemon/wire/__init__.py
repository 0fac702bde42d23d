"""The public bodies: models that parse them, translations between dialects, answers. Pure; sees core only."""

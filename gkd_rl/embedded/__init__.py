"""The offline scale: generators of small tasks whose facts are known, with exact checkers."""

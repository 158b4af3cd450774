"""The contract between worker, service, SDK and reader, as msgspec Structs."""

"""What tests share: films, servers, small models."""

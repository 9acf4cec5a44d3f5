"""What is launched: one module a capability, one subcommand a verb."""

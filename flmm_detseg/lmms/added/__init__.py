"""What is added to an LMM: tokens, modules that fill places of the prompt or replace its projector."""

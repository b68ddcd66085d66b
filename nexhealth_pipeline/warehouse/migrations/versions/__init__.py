"""One module per migration, named by its number. None goes back: a warehouse is only ever upgraded, or restored."""

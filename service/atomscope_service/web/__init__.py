"""Pages and their assets, all served from here: no page loads anything from another host."""

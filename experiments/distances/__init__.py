"""What separation and the distance classifier draw and record."""

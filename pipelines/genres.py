"""Genres of films: which ones there are."""

GENRES = (
    "Drama",
    "Comedy",
    "Thriller",
    "Action",
    "Romance",
    "Horror",
    "Crime",
    "Documentary",
    "Adventure",
    "Sci-Fi",
    "Family",
    "Fantasy",
    "Mystery",
    "Biography",
    "Animation",
    "History",
    "Music",
    "War",
    "Sport",
    "Musical",
    "Western",
)
"""The 21 genres, in the order of every table and array."""

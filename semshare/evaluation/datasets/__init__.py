"""The evaluation's datasets: what ships as packages, and the papers' sets as users have them."""

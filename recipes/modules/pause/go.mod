module coldrack.dev/recipes/modules/pause

go 1.26.0

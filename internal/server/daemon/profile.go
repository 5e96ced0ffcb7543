package daemon

import (
	"net/http"
	"net/http/pprof"
)

// profilesPath is where Kubernetes' own servers have them. Admins only.
const profilesPath = "/debug/pprof/"

// profiles serves what `go tool pprof` reads.
func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(profilesPath, pprof.Index) // heap, allocs, goroutine, mutex, block, threadcreate
	mux.HandleFunc(profilesPath+"profile", pprof.Profile)
	mux.HandleFunc(profilesPath+"trace", pprof.Trace)
	return mux
}

package peoplewire

import "time"

// Image is a container image that this server gives to nodes. On PathImages:
//
//	GET                     -> ImageList
//	POST /prune ImagePrune  -> ImagesPruned
//	POST /pin ImagePin      -> ImagePin
//	/v2/...                 the OCI distribution protocol, to read and to write (package registry)
type Image struct {
	// Name is the full name with its tag; with @ and the digest where no tag stands for it.
	Name   string `json:"name"`
	Digest string `json:"digest"`
	// Size of what is here of it, bytes; images may share some of it.
	Size int64 `json:"size"`
	// Platforms that are here, such as linux/amd64; empty where that is not known.
	Platforms []string `json:"platforms,omitempty"`
	// Source is where it is kept: SourceBundle, SourceLoaded or SourceCache.
	Source string `json:"source"`
	// Bundle that has it, if one has.
	Bundle string `json:"bundle,omitempty"`
	Pinned bool   `json:"pinned"`
	// Added is when it came, and By who brought it; of an image of the cache when its registry was asked last.
	Added time.Time `json:"added,omitzero"`
	By    string    `json:"by,omitempty"`
	// LastUsed is when its manifest was fetched last, or came; zero for images of bundles, of which it is not noted.
	LastUsed time.Time `json:"lastUsed,omitzero"`
}

// Where an image may be.
const (
	SourceBundle = "bundle"
	SourceLoaded = "loaded"
	SourceCache  = "cache"
)

// ImageList is all images.
type ImageList struct {
	Images []Image `json:"images"`
	// Loaded images have LoadedBytes, and may have LoadedLimit; those of the cache likewise.
	LoadedBytes int64 `json:"loadedBytes"`
	LoadedLimit int64 `json:"loadedLimit"`
	CacheBytes  int64 `json:"cacheBytes"`
	CacheLimit  int64 `json:"cacheLimit"`
}

// ImagePrune asks for the removal of images that nothing needs.
type ImagePrune struct {
	// Yes removes them; without it the answer says what would be removed.
	Yes bool `json:"yes,omitempty"`
	// UnusedFor keeps those that were used within that many seconds.
	UnusedFor int64 `json:"unusedFor,omitempty"`
}

// ImagesPruned says which images were, or would be, removed.
type ImagesPruned struct {
	Images []PrunedImage `json:"images"`
	// Freed bytes.
	Freed int64 `json:"freedBytes"`
	// Removed is false when nothing was, because the request had no Yes.
	Removed bool `json:"removed"`
}

// PrunedImage is an image that was looked at.
type PrunedImage struct {
	Image `json:",inline"`
	// Kept says why it stays; empty: it is removed.
	Kept string `json:"kept,omitempty"`
}

// ImagePin keeps an image of that name, or lets go of it.
type ImagePin struct {
	Name   string `json:"name"`
	Pinned bool   `json:"pinned"`
}

package audit

import (
	"encoding/json"
	"os"
	"os/user"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// Issued is a credential that somebody made from the server's files, or a key that was made trusted, with no request to the server.
type Issued struct {
	// What is tokens, kubeconfigs, trustedkeys or containerimages; Name is whom it is for, or which key or image it is.
	What, Name string
	// By is the person who did it; empty: the user of this process.
	By string
	// Verb is create or delete.
	Verb string
	// Details become annotations. None may be a secret.
	Details map[string]string
}

// Event is the record of it, as an Event of audit.k8s.io/v1. Who did it is the user of this process; sudo says who that is.
func (i Issued) Event(now time.Time) []byte {
	name := strconv.Itoa(os.Getuid())
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	annotations := map[string]string{}
	for key, value := range i.Details {
		if value != "" {
			annotations["credential.coldrack.dev/"+key] = value
		}
	}
	if sudo := os.Getenv("SUDO_USER"); sudo != "" {
		annotations["credential.coldrack.dev/sudo-user"] = sudo
	}
	at := now.UTC().Format("2006-01-02T15:04:05.000000Z07:00")
	code := 201
	if i.Verb == "delete" {
		code = 200
	}
	who := map[string]any{"username": "local:" + name, "uid": strconv.Itoa(os.Getuid())}
	if i.By != "" {
		who = map[string]any{"username": i.By}
	}
	event, err := json.Marshal(map[string]any{
		"kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": uuid.NewString(), "stage": "ResponseComplete",
		"requestURI": "", "verb": i.Verb,
		"user":                     who,
		"objectRef":                map[string]any{"apiGroup": "coldrack.dev", "resource": i.What, "name": i.Name},
		"responseStatus":           map[string]any{"code": code},
		"requestReceivedTimestamp": at, "stageTimestamp": at,
		"annotations": annotations,
	})
	if err != nil {
		panic(err) // strings and numbers
	}
	return event
}

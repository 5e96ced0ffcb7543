package peoplewire

import "time"

// UpdateStatus is what the update server knows. On PathUpdates:
//
//	GET                       -> UpdateStatus
//	POST UpdateRetry          -> UpdateDone
//	DELETE ?instance=ID       -> UpdateDone
type UpdateStatus struct {
	// Folder of settings and packages on the server, and what is wrong with it.
	Folder    string           `json:"folder"`
	Problems  []string         `json:"problems,omitempty"`
	Groups    []UpdateGroup    `json:"groups"`
	Instances []UpdateInstance `json:"instances"`
}

// UpdateGroup is a group on one board. Its numbers are of instances that asked in the last day.
type UpdateGroup struct {
	Application string `json:"application"`
	Name        string `json:"name"`
	Track       string `json:"track"`
	Channel     string `json:"channel"`
	Board       string `json:"board"`
	// Version that it should have; empty: a package is missing.
	Version    string `json:"version"`
	Paused     bool   `json:"paused"`
	Instances  int    `json:"instances"`
	UpToDate   int    `json:"upToDate"`
	InProgress int    `json:"inProgress"`
	Failed     int    `json:"failed"`
}

// UpdateInstance is a machine that asks for updates.
type UpdateInstance struct {
	ID          string    `json:"id"`
	Application string    `json:"application"`
	Group       string    `json:"group"`
	Board       string    `json:"board"`
	Version     string    `json:"version"`
	Address     string    `json:"address"`
	Last        time.Time `json:"last"`
	State       string    `json:"state"`
	Target      string    `json:"target,omitempty"`
	// Reason is what it would be answered now, for programs; Detail says it to people.
	Reason  string         `json:"reason"`
	Detail  string         `json:"detail"`
	History []UpdateRecord `json:"history,omitempty"`
}

// UpdateRecord is something that happened to an instance.
type UpdateRecord struct {
	At   time.Time `json:"at"`
	What string    `json:"what"`
}

// UpdateRetry lets what failed in a group be tried again.
type UpdateRetry struct {
	Group string `json:"group"`
}

// UpdateDone says how many instances were changed.
type UpdateDone struct {
	Instances int `json:"instances"`
}

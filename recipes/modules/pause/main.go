// Command pause is the first process of every pod. It holds the pod's namespaces while its containers come
// and go, and reaps the orphans that are handed to it where containers share a process namespace.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// version is stamped when it is built.
var version = "unknown"

func main() {
	if len(os.Args) == 2 && (os.Args[1] == "-v" || os.Args[1] == "--version") {
		fmt.Println("pause", version)
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "pause: is meant to be the first process of a pod; it would not reap orphans here")
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	reap() // what died before the signals were asked for
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		reap()
	}
}

// reap takes every dead child; one SIGCHLD can stand for several.
func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if pid <= 0 {
			return
		}
	}
}

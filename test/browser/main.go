// Browser serves the web pages with made-up machines, for whoever works on them; its tests drive them with Chromium.
//
//	go run ./test/browser -machines 400
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"coldrack.dev/internal/server/daemon"
)

func main() {
	if serveIfAsked() {
		return
	}
	machines := flag.Int("machines", 400, "how many machines there are")
	pictures := flag.String("screenshots", "", "folder for pictures of the pages; nothing is served then")
	flag.Parse()
	daemon.TakeLibraryLogs(slog.New(slog.DiscardHandler))
	if err := run(*machines, *pictures); err != nil {
		fmt.Fprintln(os.Stderr, "browser:", err)
		os.Exit(1)
	}
}

func run(machines int, pictures string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if pictures != "" {
		return takePictures(ctx, pictures)
	}
	dir, err := os.MkdirTemp("", "coldrack-browser-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := startServer(ctx, dir)
	if err != nil {
		return err
	}
	defer s.stop()
	began := time.Now()
	if err := seed(ctx, s.client, madeUp(machines, time.Now())); err != nil {
		return err
	}
	fmt.Printf("%d machines written in %s; administrator's kubeconfig: %s\n", machines, time.Since(began).Round(time.Millisecond), s.cfg.AdminKubeconfig())
	link, err := s.link(ctx)
	if err != nil {
		return err
	}
	fmt.Println(link)
	<-ctx.Done()
	return nil
}

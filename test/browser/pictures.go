package main

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// mostBytes of one picture.
const mostBytes = 150 << 10

// shot is a picture of a place.
type shot struct {
	name, path string
	look       look
	// until is an expression that is true when everything is drawn.
	until string
}

// takePictures of the pages into dir.
func takePictures(ctx context.Context, dir string) error {
	data, err := os.MkdirTemp("", "coldrack-pictures-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(data)
	wide, phone := look{width: 1400, height: 860}, look{width: 390, height: 844}
	dark := func(l look) look { l.dark = true; return l }
	const all = `document.querySelector(".live").textContent === "live"`
	// The controllers have said why each of them is stuck.
	const why = all + ` && [...document.querySelectorAll(".alarm .why")].filter((e) => e.textContent.length > 20).length === 3`
	s, err := startServer(ctx, filepath.Join(data, "machines"))
	if err != nil {
		return err
	}
	defer s.stop()
	if err := seed(ctx, s.client, madeUp(400, time.Now())); err != nil {
		return err
	}
	if err := take(ctx, dir, s, []shot{
		{"racks", "/ui/racks?m=node-00133", wide, why},
		{"racks-dark", "/ui/racks?q=is:stuck&m=node-00266", dark(wide), why},
		{"racks-phone", "/ui/racks", dark(phone), why},
		{"machines", "/ui/machines", wide, why},
		{"machine-dark", "/ui/machines/node-00133", dark(wide), why + ` && document.body.innerText.includes("What was asked of it")`},
	}); err != nil {
		return err
	}
	kinds, err := startServing(ctx, filepath.Join(data, "clusters"), true)
	if err != nil {
		return err
	}
	defer kinds.stop()
	if err := seedCluster(ctx, kinds.client, time.Now()); err != nil {
		return err
	}
	return take(ctx, dir, kinds, []shot{{"cluster", "/ui/clusters/prod", look{width: 1400, height: 1180}, all + ` && document.body.innerText.includes("cluster-authority")`}})
}

func take(ctx context.Context, dir string, s *server, shots []shot) error {
	b, end, err := startChromium(ctx, s.cfg.APIAddress)
	if err != nil {
		return err
	}
	defer end()
	link, err := s.link(ctx)
	if err != nil {
		return err
	}
	if err := call(b, emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: "UTC"}); err != nil {
		return err
	}
	if err := b.open(link); err != nil {
		return err
	}
	if err := b.wait(`document.querySelector("header.top")`); err != nil {
		return err
	}
	for _, one := range shots {
		if err := b.look(one.look); err != nil {
			return err
		}
		if err := b.open("https://" + s.cfg.APIAddress + one.path); err != nil {
			return err
		}
		if err := b.wait(one.until); err != nil {
			return fmt.Errorf("%s: %w", one.name, err)
		}
		// Changes are drawn in bursts, and what a browser has drawn is there a frame later.
		const drawn = `new Promise((done) => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(() => done(true))), 300))`
		if _, err := value[bool](b, drawn); err != nil {
			return err
		}
		picture, err := act(b, chromedp.CaptureScreenshot())
		if err != nil {
			return err
		}
		small, err := shrink(picture)
		if err != nil {
			return err
		}
		if len(small) > mostBytes {
			return fmt.Errorf("picture %s has %d bytes, more than %d", one.name, len(small), mostBytes)
		}
		name := filepath.Join(dir, "ui-"+one.name+".png")
		if err := os.WriteFile(name, small, 0o644); err != nil {
			return err
		}
		fmt.Printf("%s  %d bytes\n", name, len(small))
	}
	return nil
}

// shrink gives a picture the 256 colours that it has most of; every other colour becomes the nearest of them.
func shrink(picture []byte) ([]byte, error) {
	from, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		return nil, err
	}
	bounds, count := from.Bounds(), map[color.RGBA]int{}
	at := func(x, y int) color.RGBA { return color.RGBAModel.Convert(from.At(x, y)).(color.RGBA) }
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			count[at(x, y)]++
		}
	}
	var colors []color.RGBA
	for c := range count {
		colors = append(colors, c)
	}
	slices.SortFunc(colors, func(a, b color.RGBA) int {
		if n := count[b] - count[a]; n != 0 {
			return n
		}
		return int(a.R)<<16 + int(a.G)<<8 + int(a.B) - int(b.R)<<16 - int(b.G)<<8 - int(b.B)
	})
	palette := color.Palette{}
	for _, c := range colors[:min(256, len(colors))] {
		palette = append(palette, c)
	}
	to, index := image.NewPaletted(bounds, palette), map[color.RGBA]uint8{}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			c := at(x, y)
			i, ok := index[c]
			if !ok {
				i = uint8(palette.Index(c))
				index[c] = i
			}
			to.SetColorIndex(x, y, i)
		}
	}
	var out bytes.Buffer
	err = (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, to)
	return out.Bytes(), err
}

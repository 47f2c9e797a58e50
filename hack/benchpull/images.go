package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cri-shim/cri-shim/hack/registry"
)

type benchCase struct {
	name string
	refs []string
}

// makeImages stores images made of this machine's own programs and libraries.
func makeImages(r *registry.Server, megabytes int, names []string) ([]benchCase, error) {
	// Such files compress to about 0.4.
	files, err := machineFiles(int64(megabytes) * 1e6 * 10 / 4)
	if err != nil {
		return nil, err
	}
	var cases []benchCase
	put := func(name string, images ...registry.Image) error {
		if !slices.Contains(names, name) {
			return nil
		}
		c := benchCase{name: name}
		var size int64
		seen := map[string]bool{}
		for i, img := range images {
			repo := fmt.Sprintf("%s%d", name, i)
			p, err := r.AddImage(repo, "v1", img)
			if err != nil {
				return err
			}
			for _, l := range p.Layers {
				if !seen[l.Digest.String()] {
					size += l.Size
				}
				seen[l.Digest.String()] = true
			}
			c.refs = append(c.refs, r.Host()+"/"+repo+":v1")
		}
		fmt.Printf("%-9s %d images, %d layers, %.0f MB compressed\n", name, len(images), len(seen), float64(size)/1e6)
		cases = append(cases, c)
		return nil
	}
	seven := []int{40, 20, 15, 10, 8, 5, 2}
	for _, z := range []registry.Compression{registry.Gzip, registry.Zstd} {
		if err := put(string(z), imageOf(files, seven, z)); err != nil {
			return nil, err
		}
	}
	forty := slices.Repeat([]int{1}, 40)
	if err := put("layers", imageOf(files[:len(files)/2], forty, registry.Gzip)); err != nil {
		return nil, err
	}
	base := imageOf(files[:len(files)/4], []int{40, 30, 20, 5, 5}, registry.Gzip)
	var shared []registry.Image
	own := files[len(files)/4:]
	for i := range 10 {
		n := len(own) / 30
		top := imageOf(own[i*n:(i+1)*n], []int{1}, registry.Gzip)
		shared = append(shared, registry.Image{Layers: append(slices.Clone(base.Layers), top.Layers...)})
	}
	if err := put("shared", shared...); err != nil {
		return nil, err
	}
	return cases, nil
}

type machineFile struct {
	path string
	info fs.FileInfo
}

// machineFiles collects files of up to so many bytes in all.
func machineFiles(total int64) ([]machineFile, error) {
	var all []machineFile
	for _, root := range []string{"/usr/bin", "/usr/lib", "/usr/share"} {
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil //nolint:nilerr // what cannot be read is not taken
			}
			fi, err := d.Info()
			if err != nil || fi.Size() > 16<<20 {
				return nil
			}
			if total -= fi.Size(); total < 0 {
				return fs.SkipAll
			}
			all = append(all, machineFile{p, fi})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if total > 0 {
		return nil, fmt.Errorf("this machine's files are %d MB too few: use a smaller -size", total/1e6)
	}
	// Programs, libraries and small files in each layer.
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all, nil
}

// imageOf deals files out to layers in the proportion of weights, by bytes.
func imageOf(files []machineFile, weights []int, z registry.Compression) registry.Image {
	var total, sum int64
	for _, f := range files {
		total += f.info.Size()
	}
	for _, w := range weights {
		sum += int64(w)
	}
	var img registry.Image
	for _, w := range weights {
		var b bytes.Buffer
		t := tar.NewWriter(&b)
		dirs := map[string]bool{".": true}
		share := total * int64(w) / sum
		// What a large file took is missing for the layers that follow.
		for left := share; left > 0 && len(files) > 0; files = files[1:] {
			left -= files[0].info.Size()
			total -= files[0].info.Size()
			addFile(t, files[0], dirs)
		}
		sum -= int64(w)
		if err := t.Close(); err != nil {
			panic(err) // into memory
		}
		img.Layers = append(img.Layers, registry.Layer{Tar: b.Bytes(), Compression: z})
	}
	return img
}

// addFile adds a file after the directories above it, as builders write them.
func addFile(t *tar.Writer, f machineFile, dirs map[string]bool) {
	for _, d := range parents(strings.TrimPrefix(f.path, "/")) {
		if dirs[d] {
			continue
		}
		dirs[d] = true
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755, ModTime: f.info.ModTime()}); err != nil {
			panic(err) // into memory
		}
	}
	h, err := tar.FileInfoHeader(f.info, "")
	if err != nil {
		return
	}
	b, err := os.ReadFile(f.path)
	if err != nil {
		return
	}
	h.Name, h.Size, h.Uname, h.Gname = strings.TrimPrefix(f.path, "/"), int64(len(b)), "", ""
	if err := t.WriteHeader(h); err != nil {
		panic(err)
	}
	if _, err := io.Copy(t, bytes.NewReader(b)); err != nil {
		panic(err)
	}
}

// parents are the directories above a path, the topmost first.
func parents(path string) []string {
	var all []string
	for i, c := range path {
		if c == '/' {
			all = append(all, path[:i])
		}
	}
	return all
}

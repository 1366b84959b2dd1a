// Requests random ranges from a registry, many at once over net/http. mime/multipart parses multipart bodies, and every byte is compared
// with the file.
// Arguments: the registry's base URL, its CA, a JSON list of its content, the version of HTTP (1 or 2), the seed, and the number of
// requests.
package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
)

type content struct {
	Target, File string
	bytes        []byte
}

var (
	base, version = os.Args[1], os.Args[4]
	client        = &http.Client{}
)

// get sends a GET request, with a Range header unless that is empty, and checks the status.
func get(of *content, asked string, status int) (*http.Response, error) {
	request, err := http.NewRequest("GET", base+of.Target, nil)
	if err != nil {
		return nil, err
	}
	if asked != "" {
		request.Header.Set("Range", "bytes="+asked)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	if strconv.Itoa(response.ProtoMajor) != version || response.StatusCode != status {
		response.Body.Close()
		return nil, fmt.Errorf("%s %s instead of HTTP/%s with status %d", response.Proto, response.Status, version, status)
	}
	return response, nil
}

func same(got io.Reader, want []byte) error {
	read, err := io.ReadAll(got)
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", len(read), len(want), err)
	}
	if !bytes.Equal(read, want) {
		return fmt.Errorf("%d bytes, and %d other ones were expected", len(read), len(want))
	}
	return nil
}

// whole requests the whole content.
func whole(of *content, asked string) error {
	response, err := get(of, asked, 200)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return same(response.Body, of.bytes)
}

// early requests an open-ended range, reads a part of it and closes the body, as a parallel fetch does.
func early(of *content, start, length int) error {
	response, err := get(of, fmt.Sprintf("%d-", start), 206)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return same(io.LimitReader(response.Body, int64(length)), of.bytes[start:start+length])
}

// ranges requests several slices, which may touch, overlap, and come in any order.
func ranges(of *content, random *rand.Rand) error {
	size, sum := len(of.bytes), 0
	var slices [][2]int
	var words []string
	for count := 1 + random.Intn(9); count > 0; count-- {
		start := random.Intn(size)
		end := start + 1 + random.Intn(size-start)
		word := fmt.Sprintf("%d-%d", start, end-1)
		switch random.Intn(8) {
		case 0:
			end, word = size, fmt.Sprintf("%d-", start)
		case 1:
			end, word = size, fmt.Sprintf("-%d", size-start)
		case 2:
			end, word = size, fmt.Sprintf("%d-%d", start, size)
		}
		sum += end - start
		slices, words = append(slices, [2]int{start, end}), append(words, word)
		if sum > size/2 {
			break
		}
	}
	asked := strings.Join(words, ",")
	if len(slices) > 1 && sum > size {
		return whole(of, asked)
	}
	response, err := get(of, asked, 206)
	if err != nil {
		return fmt.Errorf("%s: %w", asked, err)
	}
	defer response.Body.Close()
	check := func(part io.Reader, at int, given string) error {
		start, end := slices[at][0], slices[at][1]
		if want := fmt.Sprintf("bytes %d-%d/%d", start, end-1, size); given != want {
			return fmt.Errorf("%s: %q instead of %q", asked, given, want)
		}
		if err := same(part, of.bytes[start:end]); err != nil {
			return fmt.Errorf("%s, slice %d: %w", asked, at, err)
		}
		return nil
	}
	if len(slices) == 1 {
		return check(response.Body, 0, response.Header.Get("Content-Range"))
	}
	_, parameters, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	parts := multipart.NewReader(response.Body, parameters["boundary"])
	for at := range slices {
		part, err := parts.NextPart()
		if err != nil {
			return fmt.Errorf("%s, slice %d: %w", asked, at, err)
		}
		if err := check(part, at, part.Header.Get("Content-Range")); err != nil {
			return err
		}
	}
	if _, err := parts.NextPart(); err != io.EOF {
		return fmt.Errorf("%s: no end after the last part: %v", asked, err)
	}
	return nil
}

func one(of *content, random *rand.Rand) error {
	size := len(of.bytes)
	switch kind := random.Intn(8); {
	case size == 0 || kind == 0:
		return whole(of, "")
	case kind < 3:
		start := random.Intn(size)
		return early(of, start, random.Intn(size-start+1))
	default:
		return ranges(of, random)
	}
}

func number(argument string) int {
	value, err := strconv.Atoi(argument)
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	ca, err := os.ReadFile(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(ca)
	client.Transport = &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: trusted},
		ForceAttemptHTTP2: version == "2",
		// With HTTP/1.1 a few connections carry many requests each. With HTTP/2 all requests share one.
		MaxConnsPerHost: 8,
	}
	listed, err := os.ReadFile(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	var contents []*content
	if err := json.Unmarshal(listed, &contents); err != nil {
		log.Fatal(err)
	}
	for _, of := range contents {
		if of.bytes, err = os.ReadFile(of.File); err != nil {
			log.Fatal(err)
		}
	}
	seed, requests := number(os.Args[5]), number(os.Args[6])
	var running sync.WaitGroup
	var failed sync.Map
	const atOnce = 60
	for worker := 0; worker < atOnce; worker++ {
		running.Add(1)
		go func(worker int) {
			defer running.Done()
			random := rand.New(rand.NewSource(int64(seed + worker)))
			for request := worker; request < requests; request += atOnce {
				of := contents[random.Intn(len(contents))]
				if err := one(of, random); err != nil {
					failed.Store(request, fmt.Sprintf("%d bytes: %v", len(of.bytes), err))
				}
			}
		}(worker)
	}
	running.Wait()
	failures := 0
	failed.Range(func(_, err any) bool {
		failures++
		if failures <= 10 {
			fmt.Fprintln(os.Stderr, err)
		}
		return true
	})
	if failures > 0 {
		log.Fatalf("%d of %d requests failed", failures, requests)
	}
	fmt.Println(requests)
}

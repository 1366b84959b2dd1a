// A launcher in Go: `localregistry run --json` gives one line when the registry answers.
//
//	go run qemu/launchers/run.go DISK REPOSITORY:TAG
//
// Pulls the image's manifest over TLS, trusting the registry's CA alone. Standard library only.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
)

// Ready is the line: what this program wants of it.
type Ready struct {
	Endpoint string `json:"endpoint"`
	CA       string `json:"ca"`
}

// Appliance is a running registry.
type Appliance struct {
	Ready
	run      *exec.Cmd
	lifeline io.Closer
}

// Boot returns when the registry answers. No file is left.
func Boot(disk string, arguments ...string) (*Appliance, error) {
	program := os.Getenv("LOCALREGISTRY")
	if program == "" {
		program = "localregistry"
	}
	run := exec.Command(program, append([]string{"run", disk, "--end-with-stdin", "--quiet", "--json"}, arguments...)...)
	// What goes wrong is on standard error.
	run.Stderr = os.Stderr
	// `run` ends when its standard input does, and so with this program, however it ends.
	lifeline, err := run.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := run.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := run.Start(); err != nil {
		return nil, err
	}
	appliance := &Appliance{run: run, lifeline: lifeline}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &appliance.Ready)
	}
	if err != nil {
		// Standard output has ended, and so has `run`, or is about to: its exit status says more.
		lifeline.Close()
		if ended := run.Wait(); ended != nil {
			return nil, ended
		}
		return nil, err
	}
	return appliance, nil
}

// Stop ends it in order. The error is nil only where the guest says that all went well.
func (appliance *Appliance) Stop() error {
	appliance.lifeline.Close()
	return appliance.run.Wait()
}

// Client trusts the registry's CA, and nobody else.
func (appliance *Appliance) Client() (*http.Client, error) {
	pem, err := os.ReadFile(appliance.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate is in %s", appliance.CA)
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}, nil
}

func pull(disk, image string) error {
	appliance, err := Boot(disk)
	if err != nil {
		return err
	}
	client, err := appliance.Client()
	if err == nil {
		err = manifest(client, appliance.Endpoint, image)
	}
	if ended := appliance.Stop(); err == nil {
		err = ended
	}
	return err
}

func manifest(client *http.Client, endpoint, image string) error {
	colon := strings.LastIndex(image, ":")
	request, err := http.NewRequest("GET", endpoint+"/v2/"+image[:colon]+"/manifests/"+image[colon+1:], nil)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json")
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", image, response.Status)
	}
	fmt.Println("pulled", image, response.Header.Get("Docker-Content-Digest"))
	return nil
}

func main() {
	if len(os.Args) != 3 || !strings.Contains(os.Args[2], ":") {
		fmt.Fprintln(os.Stderr, "usage: run DISK REPOSITORY:TAG")
		os.Exit(2)
	}
	err := pull(os.Args[1], os.Args[2])
	if ended, is := err.(*exec.ExitError); is {
		os.Exit(ended.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

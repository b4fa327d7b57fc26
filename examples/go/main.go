// Attention over HTTP from Go, with nothing but the standard library.
//
//	cd examples/go && go run . [URL]
package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
)

// Tensor is float32 data on the wire: little-endian bytes, row by row. encoding/json
// reads and writes a []byte as base64, which is what the service takes.
type Tensor struct {
	DType string `json:"dtype"`
	Shape []int  `json:"shape"`
	Data  []byte `json:"data"`
}

func encode(shape []int, numbers ...float32) Tensor {
	var data bytes.Buffer
	binary.Write(&data, binary.LittleEndian, numbers) // a bytes.Buffer never fails
	return Tensor{"float32", shape, data.Bytes()}
}

func (t Tensor) numbers() []float32 {
	numbers := make([]float32, len(t.Data)/4)
	if err := binary.Read(bytes.NewReader(t.Data), binary.LittleEndian, numbers); err != nil {
		log.Fatal(err)
	}
	return numbers
}

func (t Tensor) print(name string) {
	rows, columns := t.Shape[0], t.Shape[1]
	numbers := t.numbers()
	fmt.Printf("%s %dx%d\n", name, rows, columns)
	for row := 0; row < rows; row++ {
		for _, number := range numbers[row*columns : (row+1)*columns] {
			fmt.Printf("  %.4f", number)
		}
		fmt.Println()
	}
}

// post sends a request and reads the answer. Errors are problem documents: their detail says it.
func post(url string, request, answer any) {
	body, err := json.Marshal(request)
	if err != nil {
		log.Fatal(err)
	}
	response, err := http.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		var problem struct{ Title, Detail string }
		json.NewDecoder(response.Body).Decode(&problem) // from a proxy it may be no JSON
		log.Fatalf("%s: %s: %s", response.Status, problem.Title, problem.Detail)
	}
	if err := json.NewDecoder(response.Body).Decode(answer); err != nil {
		log.Fatal(err)
	}
}

func baseURL() string {
	if len(os.Args) > 1 {
		return os.Args[1]
	}
	if url := os.Getenv("ATTENTION_URL"); url != "" {
		return url
	}
	return "http://127.0.0.1:8080"
}

func main() {
	log.SetFlags(0)
	url := baseURL()

	// Two queries over three keys and values: shapes [L,D], [S,D] and [S,Dv].
	var attention struct{ Output, Weights Tensor }
	post(url+"/v1/attention", map[string]any{
		"query":         encode([]int{2, 2}, 1, 0, 0, 1),
		"key":           encode([]int{3, 2}, 1, 0, 0, 1, 1, 1),
		"value":         encode([]int{3, 2}, 1, 2, 3, 4, 5, 6),
		"tensor_format": "base64",
	}, &attention)
	attention.Output.print("output")
	attention.Weights.print("weights")

	// What one head of a trained model attends to: one layer and one head are asked for,
	// so the weights are [1,1,L,L].
	const layer, head = 3, 1
	var text struct {
		Results []struct {
			Tokens  []string
			Special []int `json:"special_tokens_mask"`
			Weights Tensor
		}
	}
	post(url+"/v1/text/attention", map[string]any{
		"text":          "The animal didn't cross the street because it was too tired.",
		"layers":        []int{layer},
		"heads":         []int{head},
		"tensor_format": "base64",
	}, &text)
	result := text.Results[0]
	fmt.Println("tokens", strings.Join(result.Tokens, " "))

	// Between two different words; the marks at both ends collect what a head has no use for.
	var bestFrom, bestTo int
	var best float32
	for i, weight := range result.Weights.numbers() {
		from, to := i/len(result.Tokens), i%len(result.Tokens)
		words := result.Special[from] == 0 && result.Special[to] == 0
		if from != to && words && weight > best {
			best, bestFrom, bestTo = weight, from, to
		}
	}
	fmt.Printf("strongest link of layer %d, head %d: %s -> %s %.4f\n",
		layer, head, result.Tokens[bestFrom], result.Tokens[bestTo], best)
}
